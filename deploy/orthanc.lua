-- Orthanc runs client/upscale.py on every study that is complete ("stable"), which stores results in the same study:
--
--   "LuaScripts": ["/opt/cxr-superres/deploy/orthanc.lua"]
--
-- Environment variables of Orthanc: CXR_SUPERRES is the folder of this project, CXR_DICOMWEB the root of Orthanc's own
-- DICOMweb service, CXR_OPTIONS are further options of the command, such as "--url gpu-server:8001".
-- The study is stable once more when results have arrived; running again stores the same instances, which changes
-- nothing.

function OnStableStudy(id, tags, metadata)
  local study = tags['StudyInstanceUID']
  if not string.match(study, '^[0-9.]+$') then
    print('study ' .. id .. ' is not upscaled: its UID is not valid')
    return
  end
  local folder = os.getenv('CXR_SUPERRES') or '/opt/cxr-superres'
  local url = os.getenv('CXR_DICOMWEB') or 'http://localhost:8042/dicom-web'
  local command = 'cd "' .. folder .. '" && ${CXR_PYTHON:-.venv/bin/python} client/upscale.py --dicomweb "' .. url ..
    '" --study ' .. study .. ' --store ' .. (os.getenv('CXR_OPTIONS') or '')
  -- in the background, as Orthanc waits for scripts; its log gets errors only
  os.execute('(' .. command .. ') < /dev/null > /dev/null &')
end
